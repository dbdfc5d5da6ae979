"""Files that nobody vouches for, read with care; files and folders, written whole."""
