"""Faster equals of plain operations, each taken only where a trial on the machine at hand found it right and faster."""
