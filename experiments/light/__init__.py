"""What a step of release `photon` takes of a device."""
