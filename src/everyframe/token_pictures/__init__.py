"""Pictures of what an encoder makes of the patches of a video: which merge, how much they count, which are computed.

Source: the figures follow vid-TLDR (CVPR 2024), figure 6, and ToMe (ICLR 2023), figure 4: patches of one token are
painted in their mean colour; across frames they follow TempMe (ICLR 2025), figures 4 and 7.
"""

from everyframe.token_pictures.draw import FRAMES, TokenPicture, draw_tokens, usual_clips, usual_schedule

__all__ = ["FRAMES", "TokenPicture", "draw_tokens", "usual_clips", "usual_schedule"]
