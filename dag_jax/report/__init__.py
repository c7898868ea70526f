"""What people look at: pictures, tables and plots of a run."""
