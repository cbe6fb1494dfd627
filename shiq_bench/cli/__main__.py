"""``python -m shiq_bench.cli``"""

from shiq_bench.cli import main

if __name__ == "__main__":
    main()
