"""Draws the scenes' control maps before training: `python -m training.maps --conditions canny`."""

from training.diorama.maps import main

if __name__ == "__main__":
    main()
