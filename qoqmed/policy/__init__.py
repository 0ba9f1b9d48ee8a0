"""The policy and the adapters of transformers' architectures."""

from qoqmed.media.torchvision_ops import repair

repair()  # before transformers is imported: a torchvision built for another torch breaks that import
