"""Reports as pages: HTML files that open without a network, each made of a JSON report alone."""
