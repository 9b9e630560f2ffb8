"""Training and fitting: the shipped model, ATP, FitPrune, VTW. Commands `train toy`, `train atp`, `fit`."""
