"""Hooks into the loop."""

from qoqmed.media.torchvision_ops import repair

repair()  # before lightning is imported: a torchvision built for another torch breaks that import
