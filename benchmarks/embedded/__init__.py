"""The embedded data: a synthetic VOC, folders of images, films, and frames with poses, drawn from a seed."""
