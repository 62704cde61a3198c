"""The span attack on the published mechanism and on sound releases: table and picture."""
