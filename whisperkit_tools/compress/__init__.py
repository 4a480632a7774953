"""From a bundle to a smaller one: calibration speech, plan, palettes, and the gate."""
