"""Process models learned from data: input-convex Lipschitz recurrent networks, and what they are compared with."""
