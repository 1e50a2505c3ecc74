"""What is made of a trace: filters, requests, stories, diagrams, timelines. Root side."""
