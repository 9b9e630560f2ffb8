"""Training and fitting: the shipped model, ATP's modules, FitPrune's and VTW's tables."""
