"""What tests share: closed forms, models, stages of every shape, stand-ins."""
