"""``python -m worker.keeper``"""

from __future__ import annotations

from worker.keeper.loop import main

if __name__ == "__main__":
    main()
