"""What people look at: pages, drawings, timelines, traces."""
