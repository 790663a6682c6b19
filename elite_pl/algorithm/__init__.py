"""The mathematics: pure functions of tensors, to be read beside the papers. Torch only."""
