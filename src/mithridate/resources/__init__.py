"""Files that the package ships: recipes of experiments, and settings of Accelerate."""
