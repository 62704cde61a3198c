"""What every experiment is run by: settings, runner, tables."""
