"""Published programs: their own discretisations, and foreign names."""
