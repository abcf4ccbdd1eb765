"""Talk with a model: a question, and pictures if it takes them, answered word by word.

May import ``calibration`` and what that may import. ``conversation``: the model, what was said, the next reply.
"""

from quant_experts.chat.conversation import Conversation, Reply, open_conversation

__all__ = ["Conversation", "Reply", "open_conversation"]
