"""Which files are taken for pictures, and which for recordings; what a file really is, its first bytes tell."""

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif")
PICTURE_SETTINGS = "preprocessor_config.json"
"""What says how a picture becomes pixels, beside a network."""
RECORDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
