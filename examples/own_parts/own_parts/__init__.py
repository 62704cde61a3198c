"""A rule, a device, a release and a data set of another package, one file each."""
