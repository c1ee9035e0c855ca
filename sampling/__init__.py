"""The mathematics of sampling in numpy: prompts, guidance, noise, schedulers, the walk and its one step."""
