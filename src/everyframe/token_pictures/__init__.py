"""Pictures of what an encoder makes of the patches of a video: which merge, how much they count, which are computed.

Source: the figures follow vid-TLDR (CVPR 2024), figure 6, and ToMe (ICLR 2023), figure 4: patches of one token are
painted in their mean colour.
"""

from everyframe.token_pictures.draw import FRAMES, TokenPicture, draw_tokens, usual_schedule

__all__ = ["FRAMES", "TokenPicture", "draw_tokens", "usual_schedule"]
