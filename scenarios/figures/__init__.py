"""What a study's rows can show, as plain data: arms, sums, fronts, each with its interval."""
