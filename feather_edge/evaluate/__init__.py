"""Which criterion to trust: questions with known answers, asked with every one of them."""
