"""From films to a training set: clips, their scores, labels and captions. docs/prepare.md is its page."""
