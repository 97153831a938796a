"""Corrections of what was recorded (R15): rows beside events, which nobody edits."""
