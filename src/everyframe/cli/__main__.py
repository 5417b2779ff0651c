from everyframe.cli import main

main()
