"""A method with one loss more than the plain CAM, outside of toco."""
