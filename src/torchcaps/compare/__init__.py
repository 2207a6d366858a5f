"""Routings beside each other on one backbone, one data set and one loss, and what each of them costs."""
