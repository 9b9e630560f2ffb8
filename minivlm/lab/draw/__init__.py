"""Pictures that several rooms draw: what was kept of an image, sheets of panels, charts."""
