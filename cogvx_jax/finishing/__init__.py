"""What is done with a video that is made: larger pictures, more frames, sound, files to deliver."""
