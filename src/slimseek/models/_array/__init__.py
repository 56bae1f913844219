"""Networks of pictures and sounds: those that have a name, how a network becomes a file, what it is fed with."""
