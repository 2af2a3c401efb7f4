-- Runs once, on the empty server: the service's own role, which owns its database and is no superuser.
\set password `cat /run/secrets/goals_password`
CREATE ROLE goals_user LOGIN PASSWORD :'password';
CREATE DATABASE goals_database OWNER goals_user;
REVOKE ALL ON DATABASE goals_database, postgres FROM PUBLIC;
