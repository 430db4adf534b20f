-- Locks by time and owner, failures kept in the row, finished rows deleted.
CREATE TABLE delayed_jobs (
  id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  priority INT NOT NULL DEFAULT 0,
  attempts INT NOT NULL DEFAULT 0,
  handler LONGTEXT NOT NULL,
  last_error TEXT NULL,
  run_at DATETIME NULL,
  locked_at DATETIME NULL,
  failed_at DATETIME NULL,
  locked_by VARCHAR(255) NULL,
  queue VARCHAR(255) NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  KEY by_priority (priority, run_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci;
