"""Training and fitting: the shipped model, ATP's modules, two methods' tables. Commands `train toy`, `train atp`, `fit`."""
