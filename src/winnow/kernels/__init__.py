"""Operations written for speed, each tested against an fp64 oracle."""
