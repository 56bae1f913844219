"""Which files are taken for pictures, and which for recordings; what a file really is, its first bytes tell."""

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif")
PREPROCESSOR = "preprocessor_config.json"
"""What says, beside a network, how a picture becomes pixels, or a recording what the network takes."""
RECORDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
