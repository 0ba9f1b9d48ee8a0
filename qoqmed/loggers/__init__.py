"""Where a run's scalars go."""

from qoqmed.media.torchvision_ops import repair

repair()  # before lightning is imported: a torchvision built for another torch breaks that import
