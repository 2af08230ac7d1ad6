"""Data that was collected before: one form of it, and files of many kinds. numpy only; h5py where a file needs it."""
