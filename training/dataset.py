"""Renders Diorama's scenes for training: `python -m training.dataset --scenes 12000`."""

from training.diorama.dataset import main

if __name__ == "__main__":
    main()
