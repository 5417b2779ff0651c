"""How video features are made today, as small scripts of our own: what `encode.py` and `compare_peers.py` time.

Each module has one class: `Peer(folder, dtype)` loads a CLIP in Hugging Face format, and calling it with a video gives
a `Result`. They rebuild a way of working, not a package: which steps there are and in which order was read in the
packages' sources and is said at the top of each module; no line is theirs.
"""
