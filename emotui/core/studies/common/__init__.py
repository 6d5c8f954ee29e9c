"""What all studies share: the dataset, the run's folder, finished work, reports."""
