"""What tests share: small inputs, small runs, and readers of what flaxtl writes."""
