"""What every room stands on: types, files, processes, costs, the screen."""
