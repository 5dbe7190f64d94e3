"""The fast forward pass of a UNet with ControlNets and of the decoder."""
