"""PDF files as texts, and as images of their pages."""
