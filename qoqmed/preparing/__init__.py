"""Data files from published data sets: `qoqmed data build` (QoQ-Med, App. C.1 and D.3)."""
